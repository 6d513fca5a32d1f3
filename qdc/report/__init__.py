"""What a compile did: as data, and as a page that a person reads.

``model`` holds the data, ``figures`` draws, ``page`` lays out, ``files`` writes both forms beside
the artifact.
"""
