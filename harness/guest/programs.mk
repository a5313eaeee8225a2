# SPDX-License-Identifier: GPL-2.0
#
# The guest's static programs, rebuilt only when a source or header changed.
#
# usage: make -f programs.mk TREE=kernel source OBJ=build directory TARGET...
# The targets: tests, the selftests of HMM in the tree; or a program of this directory.

HERE := $(patsubst %/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
SELFTESTS := $(firstword $(wildcard $(TREE)/tools/testing/selftests/mm $(TREE)/tools/testing/selftests/vm))
HELPERS := $(wildcard $(addprefix $(SELFTESTS)/,vm_util.c thp_settings.c hugepage_settings.c))
TESTS := $(basename $(notdir $(wildcard $(SELFTESTS)/hmm-tests.c $(SELFTESTS)/hmm-device-tests.c)))
BIN := $(OBJ)/hmm-programs

# As selftests/lib.mk and selftests/mm/Makefile have them.
CFLAGS := -Wall -O2 -U_FORTIFY_SOURCE -D_GNU_SOURCE= -MMD -MP -I$(TREE) -I$(TREE)/tools/testing/selftests \
	-isystem $(OBJ)/usr/include -isystem $(TREE)/tools/include/uapi

PROGRAMS := $(basename $(notdir $(wildcard $(HERE)/*.c)))

tests: $(TESTS:%=$(BIN)/%)
$(PROGRAMS): %: $(BIN)/%

$(TESTS:%=$(BIN)/%): $(BIN)/%: $(BIN)/obj/%.o $(HELPERS:$(SELFTESTS)/%.c=$(BIN)/obj/%.o)
	gcc -static -o $@ $^ -lrt -lpthread -lm

$(TESTS:%=$(BIN)/obj/%.o): CFLAGS += -include $(HERE)/patience.h
$(BIN)/obj/%.o: $(SELFTESTS)/%.c | $(BIN)/obj
	gcc $(CFLAGS) -c -o $@ $<

$(PROGRAMS:%=$(BIN)/%): $(BIN)/%: $(HERE)/%.c | $(BIN)/obj
	gcc $(CFLAGS) -Werror -MF $(BIN)/obj/$*.d -static -o $@ $< -lpthread

$(BIN)/obj:
	mkdir -p $@

-include $(BIN)/obj/*.d
.PHONY: tests $(PROGRAMS)
.DELETE_ON_ERROR:
