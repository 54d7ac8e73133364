// X(name) for every operation of ops.h.
#define BY_HAND X
#define OP1(name, ...) X(name)
#define OP2(name, ...) X(name)
#define OP3(name, ...) X(name)
#define OP4(name, ...) X(name)
#define F1(name, ...) X(name##_f32) X(name##_ftz_f32)
#define F2 F1
#define F3 F1
#define A1 F1
#define A2 F1
#define PREDICATES OP1
#define SELP OP1
#define SETP OP1
#define DIVIDE OP1
#define REDUX OP1
#include "ops.h"
#undef BY_HAND
#undef OP1
#undef OP2
#undef OP3
#undef OP4
#undef F1
#undef F2
#undef F3
#undef A1
#undef A2
#undef PREDICATES
#undef SELP
#undef SETP
#undef DIVIDE
#undef REDUX
