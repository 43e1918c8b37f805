"""Partitions built by actors on Ray, and Ray datasets. All that the indexer knows of Ray is in here.

cluster    how many encoders fit on a cluster, and what each holds of it
encoder    what an actor does: load the models, build one partition after the other, say how far it is
remarks    what an actor's process logs, for the command's log
builder    partitions -> receipts: who builds which, and what becomes of those whose actor is lost
sink       a dataset -> an index
source     an index -> a dataset
"""
