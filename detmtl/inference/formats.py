"""The formats of exported files; a module that the command line can import at once."""

FORMATS = ("torchscript", "onnx", "pt2", "torchvision")
"""What `export` can write: `torchvision` is a state dict for torchvision's own RetinaNet."""

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
"""Format of a graph of fixed shapes -> the end that torch wants of the file's name."""
