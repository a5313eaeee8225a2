# SPDX-License-Identifier: GPL-2.0
#
# The commands of this project; each is a verb of harness/hmm, which also works
# without make. "make help" lists them with the variables that they take.

COMMANDS := run test kunit torture fuzz model mutants coverage bench bench-quick module test-stock dkms-deb dkms-test lint docs series series-check dist shell harness-test range-check clean help
VARIABLES := BASE KDIR ARGS KCSAN RT RUNS MINUTES SEED JOBS HMM_CACHE

export $(VARIABLES)
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

given := $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $v)),$v))
unknown := $(filter-out $(VARIABLES) MAKEFLAGS MAKEOVERRIDES -*-command-variables-*-,$(given))
ifneq ($(unknown),)
$(error hmm: $(unknown): no such variable; "make help" lists them)
endif

.PHONY: $(COMMANDS)
$(COMMANDS):
	@harness/hmm $@

.DEFAULT:
	$(error hmm: $@: no such command; "make help" lists them)
