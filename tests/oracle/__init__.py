# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's disk backend as the oracle, and the order that explains all answers of concurrent clients."""
