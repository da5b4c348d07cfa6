# SPDX-License-Identifier: Apache-2.0
"""A YAML file of experiments becomes runs, which can be stopped and go on, and one report of tables and figures."""
