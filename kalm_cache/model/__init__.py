"""The model runtime: checkpoints, prompts, the encoder of passages and the decoder of queries.

Letters in shapes, the same in every file of this package:

    N   sequences of a batch: passages in the encoder, query-passage pairs in the decoder
    R   rows: tokens of all sequences end to end; products run over them
    T   token slots of a sequence in a batch: its longest one's tokens; in the decoder without a cached prefix
    S   key slots of a sequence in a batch: T in the encoder, its past's and T in the decoder
    P   pooled states of a passage;  L  tokens of a cached prompt prefix
    D   state width;  I  width inside the MLP;  O  outputs of any product
    H   query heads;  K  key/value heads;  G = H / K  query heads that share one;  E  width of a head
"""
