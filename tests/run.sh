#!/bin/sh
# tests/run.sh all|unit|e2e|fault|fuzz|systems -- builds what the group needs, runs it, sums up.
#
#   unit   cmocka programs of tests/unit, plain and under ASan + UBSan, with a private Postgres
#   fuzz   tests/fuzz: corpus replayed, then FUZZ_SECONDS (10; 5 in `all`) of fuzzing per target
#   e2e    pytest tests/e2e; again those marked asan and tsan with these builds
#   fault  pytest tests/fault; again those marked asan
#   systems  what has all services up (some thirty processes): flows, the page, races; one after the other
#   all    lint and all of them; systems at the end, when nothing else runs
#
# Most of a test is waiting, so WORKERS (twice the cores, 8 at most) of pytest work side by side, each with
# servers of its own, a file at a time (pytest-xdist; without it one after the other). In `all` what needs
# no servers, and the sanitizers', runs beside them; its output comes whole, at the end.
#
# A fuzz target that needs more than lib/ names its sources in a line "links: relay/x.c ...".
# One line per group, then "N passed, N failed" alone; the exit status is 0 when none failed.
# Refuses to go on when something does not build, and to call an empty group passed.
set -u
cd "$(dirname "$0")/.." || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL
PYTHON=${PYTHON:-/usr/bin/python3}
PYTEST=${PYTEST:-$PYTHON -B -m pytest -p no:cacheprovider}
JOBS=${JOBS:-2}
WORKERS=${WORKERS:-$(nproc | awk '{ n = 2 * $1; print (n > 8 ? 8 : n) }')}
LOGS=build/check
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1:suppressions=$PWD/tests/support/tsan.supp}"
what=${1-}
case $what in
all | unit | e2e | fault | fuzz | systems) ;;
*) echo "usage: $0 all|unit|e2e|fault|fuzz|systems" >&2; exit 2 ;;
esac
mkdir -p $LOGS
started=$(date +%s)
"$PYTHON" -c 'import xdist' 2>/dev/null || WORKERS=1

# One group's line: group NAME PASSED FAILED SKIPPED SINCE
group() {
	printf '%-14s %5d passed, %d failed, %d skipped (%d s)\n' "$1" "$2" "$3" "$4" $(($(date +%s) - $5)) |
		tee -a $LOGS/summary
}

# build VARIANT TARGET...: silent when it works, and the end of everything when it does not.
build() {
	v=$1; shift
	if ! make -s -j"$JOBS" VARIANT="$v" "$@" >$LOGS/build-"$v".log 2>&1 </dev/null; then
		echo "the $v build failed:"
		grep -vE '^  (CC|LD|SQL|TEST) ' $LOGS/build-"$v".log | tail -40
		exit 1
	fi
}

# Sum of the numbers before "test(s)" in the lines of file $2 that begin with $1.
cmocka_count() {
	sed -n "s/^\[  *$1  *\] \([0-9][0-9]*\) test(s).*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

# Runs each unit program of one variant; called again by itself below a private Postgres.
unit_programs() {
	passed=0 failed=0 skipped=0
	for source in tests/unit/*_test.c; do
		name=$(basename "$source" .c)
		log=$LOGS/unit-$1-$name.log
		timeout 600 "$2/$name" >"$log" 2>&1 </dev/null
		rc=$?
		f=$(cmocka_count FAILED "$log")
		if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
		if [ $rc -eq 0 ] && [ "$(cmocka_count PASSED "$log")" -eq 0 ]; then f=1; rc="0, and no test ran"; fi
		if [ "$f" -ne 0 ]; then
			echo "FAILED $2/$name (exit $rc; $log)"
			grep -E 'ERROR|error:|^\[  FAILED' "$log" | head -20 | sed 's/^/    /'
			grep -vE '^\[ +(RUN|OK) +\]' "$log" | tail -15 | sed 's/^/    /'
		fi
		passed=$((passed + $(cmocka_count PASSED "$log")))
		failed=$((failed + f))
		skipped=$((skipped + $(cmocka_count SKIPPED "$log")))
	done
	echo $passed $failed $skipped >$LOGS/unit-"$1".counts
}
if [ "$what" = unit ] && [ "${2-}" = programs ]; then
	unit_programs "$3" "$4"
	exit 0
fi
: >$LOGS/summary

run_unit() {
	for variant in plain asan; do
		build $variant unit-programs
		since=$(date +%s)
		[ $variant = plain ] && dir=build/unit || dir=build/$variant/unit
		echo "0 1 0" >$LOGS/unit-$variant.counts
		"$PYTHON" -B tests/support/servers.py postgres -- sh tests/run.sh unit programs $variant $dir
		read -r p f s <$LOGS/unit-$variant.counts
		group "unit $variant" "$p" "$f" "$s" "$since"
	done
}

# pytest_group NAME VARIANT WORKERS MAY_BE_EMPTY ARGUMENTS...
pytest_group() {
	name=$1 variant=$2 workers=$3 may_be_empty=$4; shift 4
	[ "$workers" -le 1 ] || set -- -n "$workers" --dist loadfile "$@"
	since=$(date +%s)
	log=$LOGS/$(echo "$name" | tr ' ' -).log
	{ POSTRIDER_VARIANT=$variant $PYTEST -q -rfE --timeout "${TEST_TIMEOUT:-400}" "$@" </dev/null 2>&1; echo $? >"$log.rc"; } |
		tee "$log"
	rc=$(cat "$log.rc")
	closing=$(grep -E '^=* ?([0-9]+ [a-z]+(, )?)+.* in [0-9.]+s' "$log" | tail -1)
	count() { echo "$closing" | sed -nE "s/.*(^|[^0-9])([0-9]+) $1.*/\2/p"; }
	p=$(count passed) f=$(count failed) e=$(count 'errors?') s=$(count skipped)
	failed=$((${f:-0} + ${e:-0}))
	case $rc in
	0) ;;
	5) [ "$may_be_empty" = yes ] || { echo "$name: there is no test"; failed=1; } ;;
	*) [ $failed -gt 0 ] || failed=1 ;;
	esac
	group "$name" "${p:-0}" $failed "${s:-0}" "$since"
}

run_e2e() {
	build test all
	build asan all
	build tsan all
	pytest_group e2e test "$WORKERS" no -m 'not systems' tests/e2e
	pytest_group 'e2e asan' asan 2 yes -m asan tests/e2e
	pytest_group 'e2e tsan' tsan 2 yes -m tsan tests/e2e tests/fault
}

run_fault() {
	build test all
	build asan all
	pytest_group fault test "$WORKERS" no -m 'not systems' tests/fault
	pytest_group 'fault asan' asan 2 yes -m asan tests/fault
}

run_systems() {
	build test all
	pytest_group systems test 1 no -m systems tests/e2e tests/fault
}

FUZZ_FLAGS="-std=gnu11 -D_GNU_SOURCE -DPR_TEST=1 -DPR_VERSION=\"fuzz\" -I. -Ibuild/gen -g -O1 -fno-omit-frame-pointer"
# fuzz_objects SOURCE...: compiles those that are older than their source or any header.
fuzz_objects() {
	for source in "$@"; do
		object=build/fuzz/obj/$(echo "$source" | tr / _).o
		if [ ! -e "$object" ] || [ -n "$(find "$source" lib relay producers build/gen -name '*.h' -newer "$object" -o \
			-path "$source" -newer "$object" | head -1)" ]; then
			echo "$source $object"
		fi
	done | xargs -r -n 2 -P "$JOBS" sh -c "$fuzz_cc"' $FUZZ_FLAGS '"$fuzz_san"' $(pkg-config --cflags libpq) -c "$0" -o "$1"'
}

# fuzz_build SOURCE PROGRAM
fuzz_build() {
	more=$(sed -n 's/.*links: *\(.*\.c\).*/\1/p' "$1")
	sources="lib/*.c build/gen/sql.c producers/outbox.c $more"
	# shellcheck disable=SC2086
	fuzz_objects $sources || return 1
	objects=
	for source in $sources; do objects="$objects build/fuzz/obj/$(echo "$source" | tr / _).o"; done
	# shellcheck disable=SC2086
	$fuzz_cc $FUZZ_FLAGS $fuzz_link "$1" $objects -o "$2" \
		$(pkg-config --cflags --libs libpq rdkafka libconfig libmicrohttpd gnutls libcjson libcurl libzstd libcrypto libsodium libxxhash) -lpthread -lm
}

# fuzz_run NAME LOG COMMAND...: counts one pass or failure.
fuzz_run() {
	name=$1 log=$2; shift 2
	if timeout $((fuzz_seconds + 600)) "$@" >"$log" 2>&1 </dev/null; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $name: $*"
		tail -40 "$log" | sed 's/^/    /'
	fi
}

run_fuzz() {
	since=$(date +%s) passed=0 failed=0 skipped=0
	export FUZZ_FLAGS
	build plain build/gen/sql.c
	mkdir -p build/fuzz/obj
	if command -v clang >/dev/null; then
		fuzz_cc=clang fuzz_san='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all'
		fuzz_link='-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all'
	else
		echo "no clang: the corpus is replayed, nothing is fuzzed"
		fuzz_cc=gcc fuzz_san='-fsanitize=address,undefined -fno-sanitize-recover=all'
		fuzz_link="$fuzz_san -DPR_FUZZ_REPLAY"
	fi
	for source in tests/fuzz/fuzz_*.c; do
		name=$(basename "$source" .c)
		program=build/fuzz/$name
		corpus=tests/fuzz/corpus/${name#fuzz_}
		if ! fuzz_build "$source" "$program" >"$LOGS/$name-build.log" 2>&1; then
			failed=$((failed + 1))
			echo "FAILED to build $name"
			tail -30 "$LOGS/$name-build.log"
			continue
		fi
		if [ $fuzz_cc = gcc ]; then
			fuzz_run "$name" "$LOGS/$name-corpus.log" "$program" "$corpus"/*
			skipped=$((skipped + 1))
			continue
		fi
		fuzz_run "$name" "$LOGS/$name-corpus.log" "$program" -runs=0 "$corpus"
		mkdir -p "build/fuzz/found/$name"
		fuzz_run "$name" "$LOGS/$name.log" "$program" -max_total_time="$fuzz_seconds" -timeout=60 -rss_limit_mb=1024 \
			-artifact_prefix="build/fuzz/$name-" "build/fuzz/found/$name" "$corpus"
	done
	group fuzz $passed $failed $skipped "$since"
}

run_lint() {
	since=$(date +%s)
	PYTHON=$PYTHON sh tests/support/lint.sh | tee $LOGS/lint.log
	closing=$(tail -1 $LOGS/lint.log)
	p=$(echo "$closing" | sed -n 's/^lint: \([0-9]*\) passed.*/\1/p')
	f=$(echo "$closing" | sed -n 's/^lint: .* \([0-9]*\) failed.*/\1/p')
	s=$(echo "$closing" | sed -n 's/^lint: .* \([0-9]*\) skipped.*/\1/p')
	group lint "${p:-0}" "${f:-1}" "${s:-0}" "$since"
}

# What runs beside the tests with servers.
run_beside() {
	run_lint
	run_unit
	run_fuzz
	pytest_group asan asan 1 yes -m asan tests/e2e tests/fault
	pytest_group tsan tsan 1 yes -m tsan tests/e2e tests/fault
}

# One crew of workers for both, for the servers of a worker are the dearest of all.
run_all() {
	fuzz_seconds=${FUZZ_SECONDS:-5}
	build plain all unit-programs
	build test all
	build asan all unit-programs
	build tsan all
	run_beside >$LOGS/beside.out 2>&1 &
	beside=$!
	trap 'kill $beside 2>/dev/null' EXIT
	pytest_group 'e2e and fault' test "$WORKERS" no -m 'not systems' tests/e2e tests/fault
	wait $beside
	trap - EXIT
	cat $LOGS/beside.out
	run_systems
}

fuzz_seconds=${FUZZ_SECONDS:-10}
"run_$what"

echo
echo "---- $what: $(($(date +%s) - started)) s"
cat $LOGS/summary
awk '{ for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1) } }
	END { print p + 0 " passed, " f + 0 " failed"; exit f > 0 }' $LOGS/summary
