"""`make bench`: this project beside other implementations of SimCLR on one machine. Not part of the tests.

``__main__`` orders everything, ``plan`` lists what is measured, ``arm`` is the process that one measurement runs in;
``ours``, ``leftthomas``, ``with_lightly``, ``with_kornia`` and ``accuracy`` are what is measured, ``report`` the page.
"""
