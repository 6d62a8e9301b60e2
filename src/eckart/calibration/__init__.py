"""What a model computes on text, for operations that must not change it: second moments of its layers' inputs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
