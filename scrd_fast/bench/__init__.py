# SPDX-License-Identifier: Apache-2.0
"""Measuring the operators against other ways to compute the same numbers; docs/benchmarks.md explains the columns."""
