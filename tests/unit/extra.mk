# Unit tests of a room's own file: what they link besides lib/.
$(OUT)/unit/snapshot_test: $(OBJ)/relay/snapshot.o
$(OUT)/unit/batch_test: $(OBJ)/relay/batch.o
$(OUT)/unit/pipe_test: $(OBJ)/relay/pipe.o $(OBJ)/relay/batch.o
MESSAGE := $(OBJ)/consumers/message.o $(OBJ)/consumers/part.o $(OBJ)/tests/unit/no_replay.o
$(OUT)/unit/message_test: $(MESSAGE)
$(OUT)/unit/handler_http_test: $(addprefix $(OBJ)/consumers/,handler_http.o webhook_sign.o outcome.o) $(MESSAGE)
$(OUT)/unit/handler_exec_test: $(addprefix $(OBJ)/consumers/,handler_exec.o subprocess.o outcome.o) $(MESSAGE)

# Shared objects that handler_c_test loads: one that works (or not, as told), those to refuse, the example.
HANDLER_LIBS := $(patsubst %,$(OUT)/unit/%.so,handler_c_example handler_c_lib $(addprefix handler_c_lib_,wrong_abi short no_handle no_symbol))
SHARED = $(Q)mkdir -p $(@D); echo "  LIB  $@"; $(CC) $(filter-out -fPIE,$(CFLAGS)) -fPIC -Iconsumers -MF $@.d -shared $(SAN) $(1) $< -lpq -o $@
$(OUT)/unit/handler_c_test: $(addprefix $(OBJ)/consumers/,handler_c.o outcome.o) | $(HANDLER_LIBS)
$(OUT)/unit/handler_c_lib.so: tests/unit/handler_c_lib.c consumers/postrider_handler.h
	$(call SHARED)
$(OUT)/unit/handler_c_lib_%.so: tests/unit/handler_c_lib.c consumers/postrider_handler.h
	$(call SHARED,-D$(shell echo $* | tr a-z A-Z))
$(OUT)/unit/handler_c_example.so: docs/examples/handlers/seat.c consumers/postrider_handler.h
	$(call SHARED)
