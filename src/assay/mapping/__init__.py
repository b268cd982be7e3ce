"""From a model to an atlas of features that are explained, scored and tested."""
