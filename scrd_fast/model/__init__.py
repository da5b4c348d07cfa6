# SPDX-License-Identifier: Apache-2.0
"""Teacher, bottleneck, student, scale adaptation, objectives, and SCRD, which joins them."""
