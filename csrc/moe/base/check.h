#pragma once
// How the core says no. Messages read "[op] what was given; what is required".

#include <sstream>
#include <stdexcept>
#include <string>

namespace moe {

/// A caller's mistake in a value or a shape. Python sees ValueError.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A wrong dtype or layout. Python sees TypeError.
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// What this machine cannot do. Python sees RuntimeError.
struct CannotRun : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Joins its arguments into one message.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace moe

/// Op boundary: throws ValueError before any thread starts.
#define MOE_CHECK(condition, ...)                                           \
  do {                                                                      \
    if (!(condition)) throw ::moe::ValueError(::moe::message(__VA_ARGS__)); \
  } while (false)

/// Our own mistakes; checked in debug and sanitizer builds only.
#ifdef MOE_DEBUG_CHECKS
#define MOE_DCHECK(condition)           \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
#else
#define MOE_DCHECK(condition) static_cast<void>(0)
#endif
