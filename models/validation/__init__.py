"""Lists of mixtures and their rendering, the validation mixtures, and a separator's figures on them.

Training watches these, evaluation reports them.
"""
