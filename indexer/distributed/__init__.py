"""An index in partitions: planned once, built by whatever runs commands, committed once.

    plan      the corpus -> texts by shard, with ordinals              one process, under the build lock
    build     (partition, plan) -> an attempt and its receipt          any number of processes, without a lock
    commit    one receipt a partition -> the next generation           one process, under the build lock

Where a plan and what is built of it lie, a place says (places/). In the folder of an unfinished build:

    plan/plan.json, plan/00003.texts.zst                what is to be built, and the texts of partition 3
    attempts/00003/0/, 0.json, 0.lock                   an attempt at partition 3: a segment, its receipt, who builds it
    shards/00003/                                       linked from the attempt that is published

plan       what a plan says, written and read
receipt    what an attempt has made, written and read
plan_job, build_job, commit_job    the three steps; plan and commit of a folder
bucket_jobs    plan and commit in an object store
jobs       the commands over either place, and all three steps in one call
on_ray/    what builds many partitions side by side; nothing else here knows a scheduler
"""
