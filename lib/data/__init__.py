"""Images from their source to the one file that every later stage reads.

``sources`` picks the reader that ``dataset`` names: ``official`` (torchvision's CIFAR and MNIST), the digits, or
``folders`` (pictures with or without classes, which ``unpack`` takes out of a zip or tar; ``labels`` reads their
labels.csv). ``pixels`` turns pictures into squares, ``split`` draws test and validation, ``store`` writes and reads
the file.
"""
