# SPDX-License-Identifier: GPL-2.0-or-later
"""The kill -9 matrix: a node dies at every named point and is started again; nothing may be lost. docs/testing.rst"""
