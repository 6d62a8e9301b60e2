"""An adapter that repairs what quantization did to the outputs of a model's layers."""
