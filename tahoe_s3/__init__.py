# SPDX-License-Identifier: GPL-2.0-or-later
"""tahoe-s3: a Tahoe-LAFS storage server that keeps its shares in an S3 bucket."""

__version__ = "0.1.0"
