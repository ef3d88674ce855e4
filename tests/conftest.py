import signal

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be what the tests start and interrupt.
# A handler of one's own is gone in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
