"""Images from their source to the one file that every later stage reads.

``sources`` picks the reader that ``dataset`` names: ``official`` (CIFAR, MNIST), ``digits`` inside
``sources``, or ``folders`` (class folders in a directory, zip or tar). ``archives`` and ``fetch`` bring the
bytes, ``pixels`` turns them into squares, ``split`` draws validation, ``store`` writes and reads the file.
"""
