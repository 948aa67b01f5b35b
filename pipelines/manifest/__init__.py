"""The manifest: two Parquet tables that say what is heard (clips) and what is asked and answered (examples).

In come corpora, each through its reader in `corpora/`; extraction, training and evaluation read what comes out.
`tools/` has the verbs that look at a manifest.
"""
