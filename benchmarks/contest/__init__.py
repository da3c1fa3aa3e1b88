# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of compare.py: who takes part, what is measured, and how it is told."""
