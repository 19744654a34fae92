"""KubeDistill's runtime: everything that runs inside a pod or on a laptop."""

__version__ = "0.1.0"
