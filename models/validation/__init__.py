"""Lists of mixtures, their rendering, the validation mixtures and a separator's figures on them: training watches these,
evaluation reports them."""
