# Unit tests of a room's own file: what they link besides lib/.
$(OUT)/unit/snapshot_test: $(OBJ)/relay/snapshot.o
$(OUT)/unit/batch_test: $(OBJ)/relay/batch.o
$(OUT)/unit/pipe_test: $(OBJ)/relay/pipe.o $(OBJ)/relay/batch.o
$(OUT)/unit/message_test: $(OBJ)/consumers/message.o $(OBJ)/consumers/part.o
$(OUT)/unit/handler_http_test: $(addprefix $(OBJ)/consumers/,handler_http.o webhook_sign.o outcome.o message.o part.o)
$(OUT)/unit/handler_exec_test: $(addprefix $(OBJ)/consumers/,handler_exec.o subprocess.o outcome.o message.o part.o)
