"""The evaluation report of a run: its worth beside plain baselines, and how sure that is (docs/evaluation.md)."""
