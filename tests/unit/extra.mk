# Unit tests of a room's own file: what they link besides lib/.
$(OUT)/unit/snapshot_test: $(OBJ)/relay/snapshot.o
$(OUT)/unit/batch_test: $(OBJ)/relay/batch.o
$(OUT)/unit/pipe_test: $(OBJ)/relay/pipe.o $(OBJ)/relay/batch.o
$(OUT)/unit/saga_graph_test: $(OBJ)/cli/saga_graph.o $(OBJ)/cli/saga_svg.o
$(OUT)/unit/ui_gate_test: $(OBJ)/cli/ui_gate.o
MESSAGE := $(OBJ)/consumers/message.o $(OBJ)/consumers/message_json.o $(OBJ)/consumers/message_row.o $(OBJ)/consumers/part.o $(OBJ)/tests/unit/no_replay.o
$(OUT)/unit/queue_view_test: $(OBJ)/producers/queue/view.o
$(OUT)/unit/queue_known_test: $(OBJ)/producers/queue/known.o
$(OUT)/unit/message_test: $(MESSAGE)
$(OUT)/unit/handler_http_test: $(addprefix $(OBJ)/consumers/,handler_http.o webhook_answer.o webhook_request.o webhook_sign.o outcome.o) $(MESSAGE)
$(OUT)/unit/handler_exec_test: $(addprefix $(OBJ)/consumers/,handler_exec.o subprocess.o outcome.o) $(MESSAGE)
$(OUT)/unit/sink_table_test: $(addprefix $(OBJ)/consumers/,sink/table_row.o sink/table_sql.o outcome.o) $(MESSAGE)

# Shared objects that handler_c_test loads: one that works (or not, as told), those to refuse, the example.
HANDLER_LIBS := $(patsubst %,$(OUT)/unit/%.so,handler_c_example handler_c_lib $(addprefix handler_c_lib_,wrong_abi short no_handle no_symbol))
SHARED = $(Q)mkdir -p $(@D); echo "  LIB  $@"; $(CC) $(filter-out -fPIE,$(CFLAGS)) -fPIC -Iconsumers -MF $@.d -shared $(SAN) $(1) $< -lpq -o $@
$(OUT)/unit/handler_c_test: $(addprefix $(OBJ)/consumers/,handler_c.o hang.o outcome.o) $(MESSAGE) | $(HANDLER_LIBS)
$(OUT)/unit/handler_c_lib.so: tests/unit/handler_c_lib.c consumers/postrider_handler.h
	$(call SHARED)
$(OUT)/unit/handler_c_lib_%.so: tests/unit/handler_c_lib.c consumers/postrider_handler.h
	$(call SHARED,-D$(shell echo $* | tr a-z A-Z))
$(OUT)/unit/handler_c_example.so: docs/examples/handlers/seat.c consumers/postrider_handler.h
	$(call SHARED)

# libavro is the reader there, and nowhere else.
$(OUT)/unit/sink_format_test: $(addprefix $(OBJ)/consumers/sink/,line.o avro.o parquet.o duck.o spool.o cells.o out.o) $(MESSAGE)
UNIT_EXTRA_sink_format_test := -lavro -lz
