# SPDX-License-Identifier: Apache-2.0
"""Results of a screening run in DICOM, in the study of their source: secondary capture, report, segmentation."""
