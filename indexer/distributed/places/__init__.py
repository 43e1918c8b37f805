"""Where a plan lies, with what is built of it: the folder of an index, or a bucket. A build knows no more than `Place`.

place     what building a partition needs of it
folder    an index folder that all builders see
bucket    an object store: texts, segments and receipts are objects; each builder has a local folder of its own
"""
