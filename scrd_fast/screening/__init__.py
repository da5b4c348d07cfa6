# SPDX-License-Identifier: Apache-2.0
"""Screening: from files to a table of scores and decisions, whatever the files are."""
