# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests and the demo with real nodes, real clients and real S3 services, each a process of its own."""
