"""`make bench`: this project and its peers, side by side on one machine. Not part of the tests.

``run`` orders everything, ``plan`` lists what is measured, ``arm`` is the process that one measurement
runs in; ``ours``, ``leftthomas``, ``with_lightly``, ``with_kornia`` and ``with_scikit`` are what is
measured, ``accuracy`` the time to an accuracy, ``ceiling`` what the machine can do; ``ratios`` and
``report`` turn the measurements into tables.
"""
