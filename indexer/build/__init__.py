"""The one build: a corpus -> plan -> compute -> commit -> a sealed segment, published. Resumable after any death.

index_job     `kalm-cache index`: settings and a corpus -> a spec, built and published; and its dry run
spec          what a build is made with, as one value: all that tells index, reindex, add, gc and repair apart
build         the driver: plan, compute and commit in a loop, then seal and publish
plan          passages of the corpus -> batches: what is taken from where it is stored, what is encoded
batching      items -> batches that fit a token budget
compute       a batch -> its records and vectors. Functions of values, that touch no file
overlap       the three of them side by side, on threads joined by bounded queues
commit        computed batches, in order -> ordinals, and both files of the unfinished build
unfinished    what a build has on disk until it is sealed: its resume log, and what this pass has accepted
counts        how far a build is, for who watches; nothing depends on it
seal          the accepted passages, merged into the segment's files
first_stage   their vectors and postings -> the segment's dense and BM25 index
"""
