# Postrider. `make help` lists the targets; nothing here recurses or configures.
# Variants: plain (build/), VARIANT=test (build/test: FAULT and SABOTAGE points in),
# VARIANT=asan and VARIANT=tsan (the test variant under sanitizers), VARIANT=fuzz (clang, libFuzzer).
-include config.mk
VARIANT  ?= plain

CC       := $(if $(filter default,$(origin CC)),$(if $(filter fuzz,$(VARIANT)),clang,gcc),$(CC))
PREFIX   ?= /usr/local
V        ?= 0
Q        := $(if $(filter 0,$(V)),@)
VERSION  := $(shell cat VERSION)
PYTHON   ?= /usr/bin/python3
PYTEST   ?= $(PYTHON) -B -m pytest -p no:cacheprovider

ROOT     := build
OUT      := $(ROOT)$(if $(filter-out plain,$(VARIANT)),/$(VARIANT))
GEN      := $(ROOT)/gen
OBJ      := $(OUT)/obj
BIN      := $(OUT)/bin

PKGS     := libpq rdkafka libconfig libmicrohttpd gnutls libcjson libcurl libzstd libcrypto libsodium libxxhash
WARN     := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition \
            -Wpointer-arith -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2 -Wnull-dereference -fno-common \
            $(if $(filter fuzz,$(VARIANT)),-Wno-gnu-zero-variadic-macro-arguments,-Wno-format-truncation)
HARDEN   := -fstack-protector-strong -fstack-clash-protection -fcf-protection -fPIE
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread -fno-omit-frame-pointer
SAN_fuzz := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SAN      := $(SAN_$(VARIANT))
CFLAGS   ?= $(if $(SAN),-O1 -g,-O2 -g)
override CFLAGS += -std=gnu11 -D_GNU_SOURCE -I. -I$(GEN) $(WARN) $(HARDEN) $(SAN) -MMD -MP \
            $(if $(SAN)$(DEVELOPER),,-D_FORTIFY_SOURCE=2) $(if $(filter plain,$(VARIANT)),,-DPR_TEST=1) \
            -DPR_VERSION='"$(VERSION)"' $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
override LDFLAGS += -pie -Wl,-z,relro,-z,now,-z,noexecstack -Wl,--as-needed $(SAN)
# jemalloc: librdkafka frees on one thread what we allocate on another (docs/decisions/0008-jemalloc.md).
LDLIBS   := $(if $(SAN),,-ljemalloc) $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lpthread -lm

# A program is a file called *_main.c; it links its own folder, lib/ and producers/outbox.c. The consumer's folder has
# rooms of its own: consumers/saga/ ...
ROOMS    := producers relay cli consumers bench tests/support
obj       = $(patsubst %.c,$(OBJ)/%.o,$(1))
MAINS    := $(wildcard $(addsuffix /*_main.c,$(ROOMS)) producers/*/*_main.c)
LIB      := $(call obj,$(wildcard lib/*.c) $(if $(filter tsan,$(VARIANT)),tests/support/tsan_threads.c)) $(OBJ)/gen/sql.o $(call obj,$(wildcard producers/outbox.c))
SERVICES := user concert queue reservation payment order platform
name      = $(BIN)/$(subst _,-,$(patsubst %_main.c,%,$(notdir $(1))))
room      = $(call obj,$(1) $(filter-out %_main.c producers/outbox.c tests/%,$(wildcard $(dir $(1))*.c $(if $(filter consumers/,$(dir $(1))),consumers/*/*.c))))
PROGRAMS := $(foreach m,$(MAINS),$(call name,$m))
UNIT     := $(patsubst tests/unit/%.c,$(OUT)/unit/%,$(wildcard tests/unit/*_test.c))
FUZZ     := $(patsubst tests/fuzz/%.c,$(OUT)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
SQL      := $(sort $(wildcard db/migrations/*.sql db/queries/*.sql db/service/*.sql lib/page/* producers/*/*.sql producers/*/*.json producers/*/*.html producers/*/*.lua consumers/*/*.sql consumers/*/*.json etc/*.json))

.PHONY: all deb help setup demo shell check check-unit check-e2e check-fault check-systems check-rivals check-fuzz torture torture-sink bench screenshots lint format \
        install clean unit-programs fuzz-programs test-programs
.DELETE_ON_ERROR:

all: $(PROGRAMS)  ## build the programs into build/bin

define program
$(call name,$(1)): $(call room,$(1)) $(LIB)
endef
$(foreach m,$(MAINS),$(eval $(call program,$m)))

$(BIN)/postrider-platform $(BIN)/postrider $(BIN)/postrider-consumer: LDLIBS += -lz
$(BIN)/postrider-concert $(BIN)/postrider-queue: LDLIBS += -lhiredis

$(PROGRAMS):
	@mkdir -p $(@D); echo "  LD   $@"
	$(Q)$(CC) $(LDFLAGS) $(sort $^) $(LDLIBS) -o $@

$(OBJ)/%.o: %.c | $(GEN)/sql.h
	@mkdir -p $(@D); echo "  CC   $<"
	$(Q)$(CC) $(CFLAGS) -c $< -o $@

$(OBJ)/gen/%.o: $(GEN)/%.c $(GEN)/sql.h
	@mkdir -p $(@D); echo "  CC   $<"
	$(Q)$(CC) $(CFLAGS) -c $< -o $@

$(GEN)/sql.c $(GEN)/sql.h &: db/embed.sh $(SQL)
	@mkdir -p $(@D); echo "  SQL  $(words $(SQL)) files"
	$(Q)sh db/embed.sh $(GEN) $(SQL)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install the Debian packages of etc/packages.txt and fetch Kafka's jars, a newer librdkafka, schemathesis
	$(Q)sh etc/setup.sh

setup-quiet:
	$(Q)sh etc/setup.sh --if-missing

demo: setup-quiet  ## the box office before your eyes, with failures (ONCE=1: end by itself)
	$(Q)$(MAKE) --no-print-directory all
	$(Q)ONCE=$(ONCE) $(PYTHON) -B tests/support/demo.py

shell: setup-quiet  ## a private Postgres and Kafka, and a shell that knows them: where docs/tutorial.md begins
	$(Q)$(MAKE) --no-print-directory all
	$(Q)$(PYTHON) -B tests/support/shell.py

check: setup-quiet  ## every test: lint, unit, fuzz corpus, e2e, fault, systems (an hour on two cores)
	$(Q)PYTEST="$(PYTEST)" sh tests/run.sh all

check-unit: setup-quiet  ## unit tests, plain and under ASan + UBSan
	$(Q)PYTEST="$(PYTEST)" sh tests/run.sh unit

check-e2e: setup-quiet  ## end to end on a real Postgres and a real Kafka
	$(Q)PYTEST="$(PYTEST)" sh tests/run.sh e2e

check-fault: setup-quiet  ## kill, freeze, cut and sabotage
	$(Q)PYTEST="$(PYTEST)" sh tests/run.sh fault

check-systems: setup-quiet  ## the example systems as a whole: every flow, race and failure over all services, the page
	$(Q)PYTEST="$(PYTEST)" sh tests/run.sh systems

check-rivals: setup-quiet  ## our record beside Debezium's, byte by byte (its jars from Maven Central, once)
	$(Q)$(MAKE) --no-print-directory VARIANT=test all
	$(Q)RIVALS=1 $(PYTEST) -q tests/rivals

check-fuzz: setup-quiet  ## replay the fuzz corpus, then fuzz each target for FUZZ_SECONDS (default 10)
	$(Q)sh tests/run.sh fuzz

torture: setup-quiet  ## random faults for SECONDS (default 600), prints its seed; TRANSFERS=1000000: a ledger of so many; SAGAS=500: so many at each death
	$(Q)$(MAKE) --no-print-directory VARIANT=test all
	$(Q)$(if $(TRANSFERS),POSTRIDER_TRANSFERS=$(TRANSFERS) $(PYTEST) -q -s tests/fault/test_consumer_ledger.py::test_ledger,\
		$(if $(SAGAS),POSTRIDER_SAGAS=$(SAGAS) POSTRIDER_SEED=$(or $(SEED),1) $(PYTEST) -q tests/fault/test_saga_walk.py tests/fault/test_saga_faults.py,\
		$(PYTHON) -B tests/support/torture.py --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))))

torture-sink: setup-quiet  ## members of a sink die for SECONDS (default 600), at each of its points: files, an API, tables
	$(Q)$(MAKE) --no-print-directory VARIANT=test all
	$(Q)$(PYTHON) -B tests/support/sink_torture.py --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

bench: setup-quiet  ## speed and memory as ratios to named baselines (RIVALS=1, FULL=1)
	$(Q)$(MAKE) --no-print-directory all
	$(Q)POSTRIDER_VARIANT=plain RIVALS=$(RIVALS) FULL=$(FULL) $(PYTHON) -B bench/run.py

screenshots: setup-quiet  ## the pictures of the docs, made by the tests of the pages
	$(Q)$(MAKE) --no-print-directory VARIANT=test all
	$(Q)POSTRIDER_SHOTS=docs/images $(PYTHON) -B -m pytest -q -p no:cacheprovider tests/e2e/test_status_page.py tests/e2e/test_ui_write.py \
		-k "idle_and_busy or test_parked or joined or stuck_saga"

lint:  ## include rule, FAULT / comment / test triples, documented options, format
	$(Q)sh tests/support/lint.sh

format:  ## rewrite every C file with the pinned clang-format
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h')

unit-programs: $(UNIT)
fuzz-programs: $(FUZZ)
test-programs: $(PROGRAMS)

$(OUT)/unit/%: tests/unit/%.c $(LIB)
	@mkdir -p $(@D); echo "  TEST $<"
	$(Q)$(CC) $(CFLAGS) -MF $@.d $(LDFLAGS) $(filter-out %.h,$^) $(UNIT_EXTRA_$*) $(LDLIBS) -lcmocka -o $@

# A fuzz target links lib/ and the relay's pure files: libFuzzer brings main().
$(OUT)/fuzz/%: tests/fuzz/%.c $(LIB) $(call obj,relay/batch.c relay/snapshot.c)
	@mkdir -p $(@D); echo "  FUZZ $<"
	$(Q)$(CC) $(CFLAGS) -MF $@.d $(LDFLAGS) -fsanitize=fuzzer $(filter-out %.h,$^) $(LDLIBS) -o $@

# Unit tests of a room's own file name it here: <test>: the extra sources.
-include tests/unit/extra.mk

install: all  ## install programs, samples, manual, completions and systemd units (DESTDIR, PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/postrider $(DESTDIR)$(PREFIX)/include/postrider
	install -m 755 $(filter %/postrider $(foreach p,relay consumer $(SERVICES),%/postrider-$p),$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	install -m 644 etc/*.cfg etc/*.json $(DESTDIR)$(PREFIX)/share/postrider
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/postrider/sagas etc/sagas/*.cfg
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/postrider/services etc/services/*.cfg
	install -m 644 producers/outbox.h consumers/postrider_handler.h $(DESTDIR)$(PREFIX)/include/postrider
	install -D -m 644 docs/man/postrider.1 $(DESTDIR)$(PREFIX)/share/man/man1/postrider.1
	$(Q)set -e; for s in bash:bash-completion/completions/postrider zsh:zsh/site-functions/_postrider \
		fish:fish/vendor_completions.d/postrider.fish; do \
		$(BIN)/postrider completion $${s%%:*} >$(GEN)/completion; \
		install -D -m 644 $(GEN)/completion $(DESTDIR)$(PREFIX)/share/$${s#*:}; echo "  INSTALL  $${s#*:}"; done
	$(Q)set -e; for p in $(addprefix postrider-,relay consumer $(SERVICES)); do \
		sh docs/man/program.sh $(BIN)/$$p >$(GEN)/manual; \
		install -D -m 644 $(GEN)/manual $(DESTDIR)$(PREFIX)/share/man/man1/$$p.1; done
	$(Q)sh deploy/systemd/install.sh '$(DESTDIR)' $(PREFIX) $(SERVICES)
	$(Q)sed -i 's,/usr/local/,$(PREFIX)/,' $(DESTDIR)$(PREFIX)/share/postrider/*.cfg $(DESTDIR)$(PREFIX)/share/postrider/services/*.cfg

deb:  ## Debian packages in build/deb, looked at by lintian
	$(Q)sh debian/build.sh

clean:  ## remove build/
	rm -rf build

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)
