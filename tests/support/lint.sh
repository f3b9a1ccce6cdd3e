#!/bin/sh
# tests/support/lint.sh -- what the compiler does not check: who includes whom, that every
# fault point has its comment and its test, that options are documented, formats, first lines.
# Looks at tracked files (at all files where there is no git). Refuses to change anything.
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-/usr/bin/python3}
if git rev-parse --git-dir >/dev/null 2>&1; then
	all=$(git ls-files)
else
	all=$(find . -name build -prune -o -type f -print | sed 's,^\./,,')
fi
passed=0 failed=0 skipped=0

# Existing files of the list $all that match the extended regular expression $1.
files() {
	echo "$all" | grep -E "$1" | while read -r f; do [ ! -f "$f" ] || echo "$f"; done
}

# run NAME FUNCTION: a check passes when it prints nothing; "skip: why" skips it.
run() {
	out=$("$2" 2>&1)
	case $out in
	'') passed=$((passed + 1)); echo "ok    $1" ;;
	skip:*) skipped=$((skipped + 1)); echo "skip  $1 (${out#skip: })" ;;
	*)
		failed=$((failed + 1))
		echo "FAIL  $1"
		echo "$out" | sed 's/^/      /'
		;;
	esac
}

# A room knows itself, lib/, the generated SQL and the applications' face; lib/ only itself. A room within the consumers'
# (consumers/saga/) knows the consumers' too.
check_includes() {
	for f in $(files '\.[ch]$'); do
		case $f in tests/* | bench/*) continue ;; esac
		grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$f" | awk -v f="$f" -v room="${f%/*}/" '{
			line = $0; sub(/:.*/, "", line)
			name = $0; sub(/^[^"]*"/, "", name); sub(/".*/, "", name)
			own = index(name, room) == 1 && index(substr(name, length(room) + 1), "/") == 0
			if (own || name == "sql.h" || name ~ /^lib\/[^\/]*$/) next
			if (room != "lib/" && name == "producers/outbox.h") next
			if (room ~ /^consumers\/[^\/]*\/$/ && name ~ /^consumers\/[^\/]*$/) next
			print f ":" line ": a file of " room " may not include \"" name "\""
		}'
	done
}

check_faults() {
	points=$(files '\.c$' | grep -v '^tests/' | xargs awk '
		FNR == 1 { said = -100 }
		/If we die here/ { said = FNR }
		match($0, /(^|[^A-Za-z_])FAULT\([a-z0-9_]+\)/) {
			name = substr($0, RSTART, RLENGTH); sub(/.*\(/, "", name); sub(/\)/, "", name)
			print name, FILENAME ":" FNR, FNR - said <= 12 ? "said" : "unsaid"
		}')
	[ -n "$points" ] || return 0
	# A name may come twice in one file (a sabotaged path repeats it); one place explains it.
	echo "$points" | awk '
		$3 == "said" { said[$1] = 1 }
		{ file = $2; sub(/:.*/, "", file)
		  if ($1 in home && home[$1] != file) print $2 ": FAULT(" $1 ") is also in " home[$1]
		  home[$1] = file; where[$1] = $2 }
		END { for (n in where) if (!said[n])
			print where[n] ": FAULT(" n ") has no comment \"If we die here\" within 12 lines above" }'
	echo "$points" | sort -u -k1,1 | while read -r name where _; do
		grep -rqsw --include='*.py' --include='*.c' -e "$name" tests/fault ||
			echo "$where: FAULT($name) has no test in tests/fault that names it"
	done
}

check_sabotage() {
	names=$(files '\.c$' | grep -v '^tests/' | xargs grep -noE '\bSABOTAGE\([a-z0-9_]+\)' /dev/null |
		sed 's/^\([^:]*:[0-9]*\):SABOTAGE(\(.*\))/\2 \1/' | sort -u -k1,1)
	[ -n "$names" ] || return 0
	echo "$names" | while read -r name where; do
		grep -rqsw --include='*.py' -e "$name" tests ||
			echo "$where: no test turns SABOTAGE($name) on"
	done
}

# Paths of the options in a libconfig file; commented-out ones count.
paths_in_config() {
	awk '/^\t*#?[a-z_0-9]+:? *\{|^\t*#?[a-z_0-9]+: *$/ { key = $1; gsub(/[#:{\t]/, "", key); group = group key "."; next }
		/^\t*#?\}/ { sub(/[a-z_0-9]+\.$/, "", group); next }
		/^[ \t]*#?[a-z_0-9]+ *= / { key = $0; sub(/^[ \t]*#?/, "", key); sub(/ *=.*/, "", key)
			print group key }' "$1"
}

check_options() {
	none=yes
	for program in relay consumer; do
		table=lib/${program}_conf.c more=lib/program_conf_table.h reference=docs/reference/$program-config.md sample=etc/$program.cfg
		[ -f "$table" ] || continue
		[ $program = relay ] || more="$more lib/sink_conf_table.h"
		none=
		[ -f "$sample" ] && shown=$(paths_in_config "$sample") || shown=
		# Options of list elements (errors[]) have a table of their own, named before the main one.
		awk '/^const struct pr_opt / { main = 1 }
			main && /^[ \t]*\{ *"[a-z_0-9.]+", *PR_OPT_/ {
				if (path && !hidden) print path
				path = $0; sub(/^[^"]*"/, "", path); sub(/".*/, "", path); hidden = 0 }
			/PR_OPT_HIDDEN/ { hidden = 1 }
			END { if (path && !hidden) print path }' "$table" $more | while read -r path; do
			echo "$shown" | grep -qxF "$path" || echo "option $path is not in $sample"
			grep -qsF "\`$path\`" "$reference" || echo "option $path is not in $reference"
		done
	done
	[ -z "$none" ] || echo "skip: no table of options"
}

check_events() {
	[ -f tests/support/events.py ] || { echo "skip: nothing declares events"; return; }
	"$PYTHON" -B tests/support/events.py check
}

check_format() {
	command -v clang-format >/dev/null || { echo "skip: no clang-format"; return; }
	case $(clang-format --version) in
	*'version 14.'*) ;;
	*) echo "skip: the format is pinned to clang-format 14, this is $(clang-format --version)"; return ;;
	esac
	files '\.[ch]$' | xargs -r clang-format --dry-run 2>&1 | sed -n 's/: warning:.*/: not as clang-format writes it (make format)/p' |
		awk -F: '!seen[$1]++'
}

check_shell() {
	for f in $(files '(\.sh|^\.ci/run)$'); do sh -n "$f"; done
}

check_python() {
	files '\.py$' | "$PYTHON" -B -c '
import ast, sys
for name in sys.stdin.read().split():
    try:
        ast.parse(open(name, encoding="utf-8").read(), name)
    except SyntaxError as e:
        print(f"{name}:{e.lineno}: {e.msg}")'
	# pytest takes the files of both folders as modules of one name space.
	files '^tests/[^/]*/test_.*\.py$' | sed 's,.*/,,' | sort | uniq -d | sed 's,$,: two test files have this name,'
}

check_first_lines() {
	for f in $(files '\.[ch]$'); do
		head -n 1 "$f" | grep -qF "/* $f " || head -n 1 "$f" | grep -qxF "/* $f" ||
			echo "$f:1: does not begin with a comment that names the file: /* $f -- what it is for"
	done
}

# Only the core decides what becomes of a saga: nobody else gives a state word of his own, or its inner functions.
check_saga_states() {
	for f in $(files '\.[ch]$' | grep -v '^tests/'); do
		[ "$f" = lib/saga_core.c ] ||
			grep -nE '(->|\.)state *= *(SAGA|STEP)_[A-Z]' "$f" |
			sed "s,^\([0-9]*\):.*,$f:\1: changes a state word of a saga: only lib/saga_core.c does,"
		case $f in lib/saga_core*) continue ;; esac
		grep -n 'saga_core_inner\.h"' "$f" | sed "s,^\([0-9]*\):.*,$f:\1: takes the inside of the saga core,"
	done
}

run "rooms include only what they may" check_includes
run "fault points have their comment and their test" check_faults
run "sabotage is used by a test" check_sabotage
run "only the core changes a saga's state" check_saga_states
run "options are in the sample and the reference" check_options
run "events are declared, and the reference has them" check_events
run "C files are formatted" check_format
run "shell scripts parse" check_shell
run "python files parse" check_python
run "C files begin with what they are for" check_first_lines
[ $skipped = 0 ] && also= || also=", $skipped skipped"
echo "lint: $passed passed, $failed failed$also"
[ $failed = 0 ]
