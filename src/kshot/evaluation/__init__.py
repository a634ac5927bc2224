"""Evaluation of models on tasks: runs, controls, intervals, reports, comparisons, and prompts shown to the user."""
