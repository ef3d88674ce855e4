"""params.yaml as frozen, typed, checked objects.

``spec`` turns a mapping into a dataclass; ``pretraining`` and ``evaluation`` hold the types and the
defaults; ``check`` refuses a bad file as a whole before any stage starts.
"""
