# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the one function that reads an image for training, evaluation and screening."""
