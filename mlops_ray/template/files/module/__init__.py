"""What this project computes itself; `project.yaml` says the rest."""
