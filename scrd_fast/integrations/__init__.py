# SPDX-License-Identifier: Apache-2.0
"""The model in other libraries' frameworks. Each module says what it needs."""
