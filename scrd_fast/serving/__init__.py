# SPDX-License-Identifier: Apache-2.0
"""A service that scores uploaded images."""
