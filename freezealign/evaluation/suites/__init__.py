"""Suites: lists of evaluations as data, run one by one, resumable, with one report for several models."""

from __future__ import annotations

from freezealign.evaluation.suites.report import write_report
from freezealign.evaluation.suites.runner import run_suite
from freezealign.evaluation.suites.suite import Suite, Task

__all__ = ["Suite", "Task", "run_suite", "write_report"]
