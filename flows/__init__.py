"""Orchestration: when and where the stages of dvc.yaml run."""
