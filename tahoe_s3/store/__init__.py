# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares in a bucket: knows S3 and Tahoe's share files, not Foolscap or HTTP."""
