"""Methods side by side: each compiled on the same samples, each judged on the same masks.

``options`` says what may be asked for, ``methods`` and ``vary`` make pipelines of it, ``jobs`` and
``work`` turn them into work with a digest, ``worker`` does one work in a process of its own with
``judge`` and ``measure``, ``runner`` keeps the processes and ``display`` shows them. ``statistics``
and ``summary`` compute from the results alone; ``figures`` and ``page`` draw. ``compare`` is the
whole.
"""
