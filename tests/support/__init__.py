# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests share: an S3 server with faults, real S3 services, a counting proxy, grids of real nodes."""
