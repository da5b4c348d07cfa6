# SPDX-License-Identifier: Apache-2.0
"""A trained model and its calibration as one file, which is run and compared with the model before it is kept."""
