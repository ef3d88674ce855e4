"""params.yaml as frozen, typed, checked objects.

``spec`` turns a mapping into a dataclass; ``pretraining`` and ``evaluation`` hold the types and the defaults;
``experiment`` reads the whole file and refuses what is wrong in it.
"""
