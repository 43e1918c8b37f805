"""What a build has on disk until it is sealed. Knows nothing of models.

resume_log          what has been encoded so far: all that a resumed build knows
accepted_passages   what the present pass over the corpus has met and accepted; a resumed build begins it anew
"""
